"""The two Grafana dashboards as code: `fleet` has all runs, `run` has one."""

from grafana_dashboards.fleet import fleet
from grafana_dashboards.run import run

__all__ = ["fleet", "run"]
