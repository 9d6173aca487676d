"""A model pool: several instances of a model, lent to one user at a time each."""

from servelab.pool.instances import BuildFailed, weights_bytes
from servelab.pool.pool import ModelPool, PoolClosed
from servelab.pool.records import Loan, LoanEnd, PoolLoad

__all__ = ["BuildFailed", "Loan", "LoanEnd", "ModelPool", "PoolClosed", "PoolLoad", "weights_bytes"]
