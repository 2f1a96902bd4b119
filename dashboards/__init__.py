"""Grafana boards, Prometheus alerts and pictures, as code. A tool of the developers: nothing here is installed.

`python -m dashboards` writes what the chart ships; tests hold it equal. What a panel asks is written once, in
`boards/`, and used three times: for Grafana, in tests against a real Prometheus, and by the renderer of the pictures.
"""
