"""The commands of delctl, one module each; :mod:`delctl.main` names them and loads the one that is asked for."""
