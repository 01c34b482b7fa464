"""The code of this project. As a package of its own, it wins over other folders called src."""
