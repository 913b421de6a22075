from splitsight.wire.v1 import session_pb2 as _session_pb2
from splitsight.wire.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeOracleRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeOracleResponse(_message.Message):
    __slots__ = ("session", "codec", "max_batch", "max_side", "budget", "left", "rate", "version", "instance")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_FIELD_NUMBER: _ClassVar[int]
    MAX_SIDE_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    RATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    session: _session_pb2.SessionDescription
    codec: _tensor_pb2.Codec
    max_batch: int
    max_side: int
    budget: int
    left: int
    rate: float
    version: str
    instance: str
    def __init__(self, session: _Optional[_Union[_session_pb2.SessionDescription, _Mapping]] = ..., codec: _Optional[_Union[_tensor_pb2.Codec, _Mapping]] = ..., max_batch: _Optional[int] = ..., max_side: _Optional[int] = ..., budget: _Optional[int] = ..., left: _Optional[int] = ..., rate: _Optional[float] = ..., version: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class Picture(_message.Message):
    __slots__ = ("height", "width", "rgb")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    RGB_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    rgb: bytes
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ..., rgb: _Optional[bytes] = ...) -> None: ...

class QueryRequest(_message.Message):
    __slots__ = ("pictures",)
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    pictures: _containers.RepeatedCompositeFieldContainer[Picture]
    def __init__(self, pictures: _Optional[_Iterable[_Union[Picture, _Mapping]]] = ...) -> None: ...

class PictureFeatures(_message.Message):
    __slots__ = ("features",)
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    features: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Tensor]
    def __init__(self, features: _Optional[_Iterable[_Union[_tensor_pb2.Tensor, _Mapping]]] = ...) -> None: ...

class QueryResponse(_message.Message):
    __slots__ = ("answers", "left", "instance")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[PictureFeatures]
    left: int
    instance: str
    def __init__(self, answers: _Optional[_Iterable[_Union[PictureFeatures, _Mapping]]] = ..., left: _Optional[int] = ..., instance: _Optional[str] = ...) -> None: ...
