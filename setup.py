"""The parts of the packaging that a configuration file cannot say: an installed package holds the
cards and experiments that lie beside it in a checkout.
"""

from setuptools import find_packages, setup

BESIDE = {
    "mspose.datasets": "datasets",
    "mspose.experiments": "experiments",
    "mspose.experiments.ablations": "experiments/ablations",
}
setup(
    packages=[*find_packages(include=["mspose", "mspose.*"]), *BESIDE],
    package_dir=BESIDE,
)
