from splitsight.wire.v1 import session_pb2 as _session_pb2
from splitsight.wire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("session", "dtypes", "compressions", "max_message_bytes", "max_sessions", "max_in_flight", "labels", "version")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    COMPRESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionDescription
    dtypes: _containers.RepeatedScalarFieldContainer[_tensor_pb2.DType]
    compressions: _containers.RepeatedScalarFieldContainer[_tensor_pb2.Compression]
    max_message_bytes: int
    max_sessions: int
    max_in_flight: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    version: str
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionDescription, _Mapping]] = ..., dtypes: _Optional[_Iterable[_Union[_tensor_pb2.DType, str]]] = ..., compressions: _Optional[_Iterable[_Union[_tensor_pb2.Compression, str]]] = ..., max_message_bytes: _Optional[int] = ..., max_sessions: _Optional[int] = ..., max_in_flight: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ...) -> None: ...

class SessionOpen(_message.Message):
    __slots__ = ("session_id", "session", "codec", "resume_after")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    RESUME_AFTER_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    session: _session_pb2.SessionDescription
    codec: _tensor_pb2.Codec
    resume_after: int
    def __init__(self, session_id: _Optional[str] = ..., session: _Optional[_Union[_session_pb2.SessionDescription, _Mapping]] = ..., codec: _Optional[_Union[_tensor_pb2.Codec, _Mapping]] = ..., resume_after: _Optional[int] = ...) -> None: ...

class SessionOpened(_message.Message):
    __slots__ = ("session_id", "max_in_flight")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    max_in_flight: int
    def __init__(self, session_id: _Optional[str] = ..., max_in_flight: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("sequence", "capture_time_us", "features")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_TIME_US_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    capture_time_us: int
    features: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, sequence: _Optional[int] = ..., capture_time_us: _Optional[int] = ..., features: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("open", "frame")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    open: SessionOpen
    frame: Frame
    def __init__(self, open: _Optional[_Union[SessionOpen, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("sequence", "classes", "boxes", "embedding", "other", "queue_us", "compute_us", "batch_size")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    CLASSES_FIELD_NUMBER: _ClassVar[int]
    BOXES_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    classes: _session_pb2.Classes
    boxes: _session_pb2.Boxes
    embedding: _session_pb2.Embedding
    other: _session_pb2.Other
    queue_us: int
    compute_us: int
    batch_size: int
    def __init__(self, sequence: _Optional[int] = ..., classes: _Optional[_Union[_session_pb2.Classes, _Mapping]] = ..., boxes: _Optional[_Union[_session_pb2.Boxes, _Mapping]] = ..., embedding: _Optional[_Union[_session_pb2.Embedding, _Mapping]] = ..., other: _Optional[_Union[_session_pb2.Other, _Mapping]] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., batch_size: _Optional[int] = ...) -> None: ...

class InferResponse(_message.Message):
    __slots__ = ("opened", "answer")
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    opened: SessionOpened
    answer: Answer
    def __init__(self, opened: _Optional[_Union[SessionOpened, _Mapping]] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...
