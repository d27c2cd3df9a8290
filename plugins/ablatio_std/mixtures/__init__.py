"""Mixtures: how often each of several sources is drawn from."""
