"""The Kubernetes objects of a job and of the operator, and the checks that they can be rendered."""
