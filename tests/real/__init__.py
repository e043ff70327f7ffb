"""Tests on the real datasets; a package, so that its modules may be named as those of the other folders."""
