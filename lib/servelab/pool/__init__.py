"""A model pool: several instances of a model, lent to one user at a time each."""

from servelab.pool.instances import BuildFailed, weights_bytes
from servelab.pool.lending import PoolClosed
from servelab.pool.loans import Loan, LoanEnd, PoolLoad
from servelab.pool.pool import ModelPool

__all__ = ["BuildFailed", "Loan", "LoanEnd", "ModelPool", "PoolClosed", "PoolLoad", "weights_bytes"]
