"""What crosses a socket: tensors as bytes, sessions, and the generated stubs in :mod:`splitsight.wire.v1`."""
