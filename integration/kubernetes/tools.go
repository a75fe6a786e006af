//go:build tools

// Package kubernetes pins what the tests' node runs. Kubernetes names its own modules by folders beside it, which
// `go install path@version` refuses; here each is the published module of the same release.
package kubernetes

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/cmd/kubelet"
)
