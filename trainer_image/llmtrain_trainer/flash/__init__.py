"""Flash checkpoints: the newest steps in the pod's memory, copied to a buddy's, and back.

Slots (`slots.py`) hold snapshots, a store (`store.py`) is a pod's directory of them. Workers take snapshots and restore
from them; agents keep the stores, copy them to each other and hand them out.
"""
