# Every target runs in an environment that scripts/bootstrap.py sets up on the first call.
# PYTHON= names the interpreter; an active virtual environment that has torch is used as it is.
PYTHON ?= python3
bootstrap := $(PYTHON) scripts/bootstrap.py

.PHONY: demo test lint bench clean

demo: ## the main job on real data
	$(bootstrap) --extras data -- fedsparse run recipes/demo.toml

test: ## ARGS="-k wire" passes options to pytest
	$(bootstrap) --extras test -- python -m pytest $(ARGS)

lint:
	$(bootstrap) -- ruff check .
	$(bootstrap) -- ruff format --check .
	$(bootstrap) -- mypy

bench:
	$(bootstrap) --extras test -- python -m pytest benchmarks -o python_files='bench_*.py' $(ARGS)

clean: ## what was built and cached; .venv stays
	rm -rf build dist *.egg-info fedsparse/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find fedsparse kernels tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
