"""Package metadata and dependencies; `constraints.txt` pins the tested versions."""

import ast
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "apex_zmq/__init__.py").read_text()).group(1)
MAIN = (ROOT / "apex_zmq/__main__.py").read_text()
PROGRAMS = ast.literal_eval(re.search(r"^PROGRAMS = (\{.*?^\})", MAIN, re.DOTALL | re.MULTILINE).group(1))

setup(
    name="apex_zmq",
    version=VERSION,
    description="Ape-X DQN as independent actor, replay and learner processes over ZeroMQ",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["apex_zmq", "apex_zmq.*"]), "apex_zmq.configs"],
    package_dir={"apex_zmq.configs": "configs"},
    package_data={"apex_zmq.configs": ["*.yaml"]},
    install_requires=[
        "gymnasium>=1.0",
        "isal>=1.7",
        "lz4>=4.3",
        "msgspec>=0.18",
        "numba>=0.60",
        "packaging>=23",
        "pillow>=10.1",
        "prometheus-client>=0.21",
        "psutil>=5.9",
        "pyyaml>=6.0",
        "pyzmq>=26",
        "rich>=13.7",
        "safetensors>=0.4",
        "tensorboard>=2.15",
        "torch>=2.4",
        # The game. Up to 3.12 the legacy gym line, which breaks on NumPy 2; from 3.13 the
        # Gymnasium line, whose pyglet pin excludes stable-retro's: see the Makefile.
        "gym-super-mario-bros>=7.4,<8; python_version < '3.13'",
        "nes-py>=8.2.1,<9; python_version < '3.13'",
        "numpy>=1.26,<2; python_version < '3.13'",
        "stable-retro>=1.0; python_version < '3.13'",
        "gym-super-mario-bros>=9.1; python_version >= '3.13'",
        "nes-py>=9.0.1; python_version >= '3.13'",
        "numpy>=2.1; python_version >= '3.13'",
    ],
    extras_require={
        "atari": ["ale-py>=0.11"],
        "video": ["imageio-ffmpeg>=0.5"],  # .mp4 files; brings an ffmpeg of its own, 30 MB
        "window": ["pygame-ce>=2.5"],
        "dev": [
            "ale-py>=0.11",
            "check-jsonschema>=0.30",  # holds the schema of compose files
            "hypothesis>=6.100",
            "imageio-ffmpeg>=0.5",
            "kubernetes-validate>=1.33",
            "matplotlib>=3.8",
            "mkdocs-material>=9.5",
            "msgpack>=1.0",
            "mypy>=1.10",
            "pygame-ce>=2.5",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "scipy>=1.11",
            "types-psutil",
            "types-PyYAML",
        ],
    },
    entry_points={"console_scripts": [f"apex-{name} = {function}" for name, function in PROGRAMS.items()]},
)
