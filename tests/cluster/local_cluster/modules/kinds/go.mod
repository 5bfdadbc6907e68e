// Kinds of others that the chart makes objects of: nothing is built, their definitions are taken from the modules.

module local-cluster/kinds

go 1.26.0

require (
	github.com/cert-manager/cert-manager v1.21.2
	github.com/prometheus-operator/prometheus-operator v0.85.0
)
