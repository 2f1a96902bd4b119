"""The service that agents hold a connection to: it passes their reports to the controller and directives back.

A process of its own, so that nothing the controller computes ever delays a heartbeat. It decides nothing about
rounds; the one judgement it makes is whether an agent is still there (`sessions.py`).
"""
