"""Sweeps: plan arms and jobs, run them through a launcher, and keep their state in a ledger."""
