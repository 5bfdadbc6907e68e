// The two static programs inside the cluster's images.

module local-cluster/pod-programs

go 1.26.0
