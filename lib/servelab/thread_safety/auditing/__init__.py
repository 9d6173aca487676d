"""Audits: may this model be shared between threads?"""
