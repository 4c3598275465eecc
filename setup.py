"""Packaging of tfuq: metadata, dependencies and extras."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "tfuq/_version.py").read_text()).group(1)

# A placeholder, here and in CITATION.cff (a test compares them): nothing is there yet. All links of
# the metadata and of README on an index are made of it. To be set before a release.
HOME = "https://github.com/tfuq/tfuq"


def long_description():
    """README with absolute links and pictures: on an index nothing lies beside it."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    relative = r"\]\((?!https?://|#|mailto:)(?:\./)?([^)\s]+)\)"
    text = re.sub("(!\\[[^]]*)" + relative, rf"\1]({HOME}/raw/main/\2)", text)
    return re.sub(relative, rf"]({HOME}/blob/main/\1)", text)


PLOTS = ["matplotlib>=3.8"]
SMOTE = ["imbalanced-learn>=0.14.2"]
EXAMPLES = [
    *PLOTS,
    *SMOTE,
    "pillow>=10",
    "scikit-image>=0.25",
    "scikit-learn>=1.4",
]
# tensorflow-datasets 4.9.10 imports importlib_resources without asking for it.
DATASETS = ["importlib_resources>=6", "tensorflow-datasets>=4.9"]
PARQUET = ["pyarrow>=15"]
BEAM = ["apache-beam>=2.77"]
RAY = ["ray>=2.9"]
RAY_DATA = [*RAY, *PARQUET, "pandas>=2"]
ONNX = ["onnx>=1.23", "onnxruntime>=1.20", "tf2onnx>=1.17"]
OPENVINO = ["openvino>=2025"]
LITERT = ["ai-edge-litert>=2"]
SIGNING = ["cryptography>=42"]
MLFLOW = ["mlflow>=3"]
SERVING = ["fastapi>=0.115,<1", "uvicorn>=0.30,<1", "pillow>=10", "prometheus_client>=0.20"]
# With pytest 9.2, pytest-xdist 3.8 no longer keeps the tests of a group on one worker.
TEST = [
    *EXAMPLES,
    *DATASETS,
    *PARQUET,
    *ONNX,
    *RAY,
    *SERVING,
    *SIGNING,
    *OPENVINO,
    # Its wheels are for Linux; other systems go without the fuzz test by coverage.
    "atheris>=3; sys_platform == 'linux' and python_version < '3.13'",
    "hypothesis>=6.100",
    "ipykernel>=6",
    "nbclient>=0.10",
    "playwright>=1.45",
    "pyyaml>=6",
    "pytest>=8,<9",
    "pytest-xdist>=3.5",
    "tensorboard>=2.18",
]
# Only `make docs` needs them, in an environment of its own.
DOCS = [
    *EXAMPLES,
    "furo>=2024.8",
    "myst-parser>=4",
    "sphinx>=8",
    "sphinx-copybutton>=0.5",
    "sphinx-gallery>=0.18",
]
DEV = [
    *TEST,
    "build>=1",
    "check-wheel-contents>=0.6",
    "mypy>=1.13",
    "pre-commit>=3.7",
    "ruff>=0.8",
    "twine>=6",
]

setup(
    name="tfuq",
    version=VERSION,
    description="Uncertainty for Keras 3 image classifiers: change one line, refuse the unsure.",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="The tfuq maintainers",
    url=HOME,
    project_urls={
        "Documentation": f"{HOME}/blob/main/docs/start.md",
        "Source": HOME,
        "Issues": f"{HOME}/issues",
        "Changelog": f"{HOME}/blob/main/CHANGELOG.md",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["tfuq", "tfuq.*"]),
    package_data={"tfuq": ["py.typed"], "tfuq.report": ["*.css", "*.html", "*.js"]},
    entry_points={"console_scripts": ["tfuq = tfuq.__main__:main"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        "keras>=3.10",
        "numpy>=1.26",
        "scipy>=1.15",
        "tensorflow>=2.18",
        "tensorflow-probability[tf]>=0.25",
        "typing_extensions>=4.4; python_version < '3.11'",
    ],
    extras_require={
        "datasets": DATASETS,
        "plots": PLOTS,
        "smote": SMOTE,
        "parquet": PARQUET,
        "beam": BEAM,
        "onnx": ONNX,
        "ray": RAY,
        "ray-data": RAY_DATA,
        "serving": SERVING,
        "signing": SIGNING,
        "mlflow": MLFLOW,
        "openvino": OPENVINO,
        "litert": LITERT,
        "examples": EXAMPLES,
        "docs": DOCS,
        "test": TEST,
        "dev": DEV,
    },
    keywords="uncertainty calibration selective-classification label-noise keras tensorflow",
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
