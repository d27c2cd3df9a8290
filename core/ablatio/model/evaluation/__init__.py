"""Responses of a model to the requests of an evaluation."""
