"""Pictures of the dashboards for the documents, of what a real Prometheus answered."""
