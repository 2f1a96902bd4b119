"""Pictures of the boards, from their real queries, by a renderer of our own: it draws no more than these panels need.

No Grafana is needed for them, and none has drawn them; each picture says so.
"""
