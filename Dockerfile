# The service as an image: no compiler, no root, nothing written outside the data directory and
# /tmp. Without arguments it is a worker; any other command of tagstream may stand in its place.

# The full image of the same Debian and Python: it has a C compiler and Python's headers.
FROM python:3.11.14-bookworm AS build
RUN python -m venv /opt/tagstream && install -d /empty
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY agents agents
COPY stream stream
COPY tables tables
RUN TAGSTREAM_COMPILE=1 \
    /opt/tagstream/bin/pip install --no-cache-dir --disable-pip-version-check .

FROM python:3.11.14-slim-bookworm
# Output at once, and no bytecode beside code that cannot be written: pip has compiled it.
ENV PATH=/opt/tagstream/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TAGSTREAM_DATA_DIR=/var/lib/tagstream
COPY --from=build /opt/tagstream /opt/tagstream
COPY --from=build --chown=10001:10001 /empty /var/lib/tagstream
# By number: Kubernetes' runAsNonRoot cannot check a name.
USER 10001:10001
EXPOSE 6066
# Exec form: SIGTERM reaches the worker itself, and no shell is needed.
ENTRYPOINT ["tagstream"]
CMD ["worker"]
