"""The supervisor of one training pod: holds the connection to the coordinator, and the workers.

It has no will of its own: which round its workers are in, when they end and when the pod ends is decided by the
operator, and each decision is fenced by the round's number. Without the coordinator it goes on with what it has.
Needs nothing but torch and websockets, so that it works injected into a user's image; without prometheus_client, which
is injected with it, it shows no metrics.
"""
