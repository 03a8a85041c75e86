"""Installs both Python packages and registers both names in the ament index, under pip and under colcon."""

import os
import xml.etree.ElementTree as ElementTree
from glob import glob

from setuptools import find_packages, setup

PACKAGES = ("kp_frontend", "kp_training")
SHARE = "share/kp_frontend"


def files(*patterns):
    """Plain files that match: a folder among them would break the build."""
    return [path for pattern in patterns for path in sorted(glob(pattern)) if os.path.isfile(path)]


setup(
    name="kp_frontend",
    version=ElementTree.parse("package.xml").getroot().findtext("version"),
    license="Apache-2.0",
    packages=find_packages(include=["kp_frontend", "kp_frontend.*", "kp_training", "kp_training.*"]),
    package_data={package: ["py.typed", "replay/*.html"] for package in PACKAGES},
    zip_safe=False,
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package}" for package in PACKAGES]),
        *((f"share/{package}", ["package.xml"]) for package in PACKAGES),
        (f"{SHARE}/launch", files("launch/*.launch.py")),
        (f"{SHARE}/config", files("config/*")),
        (f"{SHARE}/models", files("models/*")),
        *((f"lib/{package}", files(f"scripts/{package}/*")) for package in PACKAGES),
    ],
)
