"""The network between edge and cloud: what it is like, how long a frame takes over it, and its emulation.

:mod:`~splitsight.network.profiles` describes one, :mod:`~splitsight.network.prediction` says what a frame's features
and their answer take over it, :mod:`~splitsight.network.relay` makes a connection of this machine behave like it.
"""

from splitsight.network.prediction import FrameLatency, NetworkTime, framed, predict
from splitsight.network.profiles import NETWORKS, NetworkProfile, load_profile

__all__ = ["NETWORKS", "FrameLatency", "NetworkProfile", "NetworkTime", "framed", "load_profile", "predict"]
