"""The cloud: admits sessions, decodes features, runs F2, answers; and the tap that an adversary reads.

:func:`cloud_server.server.serve` runs it; ``python -m cloud_server`` is a thin command line for it.
"""
