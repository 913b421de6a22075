from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ChangeRequest(_message.Message):
    __slots__ = ("paused", "step", "speed", "source", "attack", "prompt")
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ATTACK_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    step: int
    speed: float
    source: str
    attack: str
    prompt: str
    def __init__(self, paused: _Optional[bool] = ..., step: _Optional[int] = ..., speed: _Optional[float] = ..., source: _Optional[str] = ..., attack: _Optional[str] = ..., prompt: _Optional[str] = ...) -> None: ...

class OperatorStatus(_message.Message):
    __slots__ = ("role", "paused", "speed", "source", "attack", "prompt", "frames", "unanswered", "connected", "busy", "problem")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    SPEED_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ATTACK_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    UNANSWERED_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    role: str
    paused: bool
    speed: float
    source: str
    attack: str
    prompt: str
    frames: int
    unanswered: int
    connected: bool
    busy: bool
    problem: str
    def __init__(self, role: _Optional[str] = ..., paused: _Optional[bool] = ..., speed: _Optional[float] = ..., source: _Optional[str] = ..., attack: _Optional[str] = ..., prompt: _Optional[str] = ..., frames: _Optional[int] = ..., unanswered: _Optional[int] = ..., connected: _Optional[bool] = ..., busy: _Optional[bool] = ..., problem: _Optional[str] = ...) -> None: ...
