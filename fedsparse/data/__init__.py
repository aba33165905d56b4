"""Data sets on disk or embedded, and how clients share them."""

from fedsparse.data.federated import Dataset, FederatedDataset
from fedsparse.data.partition import partition
from fedsparse.data.sources import datasets, load

__all__ = ["Dataset", "FederatedDataset", "datasets", "load", "partition"]
