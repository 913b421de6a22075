"""A package of the pages' examples, installed, and the command line beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.extend.pages import write_package

ROOT = Path(__file__).resolve().parents[2]
