from splitsight.wire.v1 import split_inference_pb2 as _split_inference_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubscribeRequest(_message.Message):
    __slots__ = ("session_id", "ring")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RING_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    ring: int
    def __init__(self, session_id: _Optional[str] = ..., ring: _Optional[int] = ...) -> None: ...

class TapEvent(_message.Message):
    __slots__ = ("session", "frame", "end")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    session: _split_inference_pb2.SessionOpen
    frame: TappedFrame
    end: SessionEnd
    def __init__(self, session: _Optional[_Union[_split_inference_pb2.SessionOpen, _Mapping]] = ..., frame: _Optional[_Union[TappedFrame, _Mapping]] = ..., end: _Optional[_Union[SessionEnd, _Mapping]] = ...) -> None: ...

class TappedFrame(_message.Message):
    __slots__ = ("session_id", "frame", "arrival_time_us", "dropped")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    ARRIVAL_TIME_US_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    frame: bytes
    arrival_time_us: int
    dropped: int
    def __init__(self, session_id: _Optional[str] = ..., frame: _Optional[bytes] = ..., arrival_time_us: _Optional[int] = ..., dropped: _Optional[int] = ...) -> None: ...

class SessionEnd(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...
