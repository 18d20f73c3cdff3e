module hftitan.io/prometheus-operator

go 1.26.8

// Only its CRDs are read; nothing is built. So `go mod tidy` would remove this line.
require github.com/prometheus-operator/prometheus-operator v0.92.0
