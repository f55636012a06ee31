"""The commands of delctl, one module each, listed in :mod:`delctl.main`."""
