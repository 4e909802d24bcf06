"""Experts at work inside a frozen model: attach, route, generate, detach."""
