"""Image sets in object storage, and the work on them at any scale. Ray only in `cluster` and `train`."""
