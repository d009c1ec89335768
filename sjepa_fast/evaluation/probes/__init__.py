# SPDX-License-Identifier: Apache-2.0
"""Classifiers fitted to features: nearest neighbours, linear layers, fine-tuning."""
