"""The two Grafana dashboards as code: `fleet` has all runs, `run` has one. What they ask is in `asked`."""
