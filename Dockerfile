# `xcite serve` for a bundle mounted at /bundle; how to run it is in docs/serving.md.
FROM python:3.11-slim AS build
COPY constraints.txt pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN python -m venv /opt/xcite \
 && /opt/xcite/bin/pip install --no-cache-dir -c /source/constraints.txt '/source[serve]' openvino onnxruntime \
 && /opt/xcite/bin/python -m compileall -q /opt/xcite/lib

FROM python:3.11-slim
COPY --from=build /opt/xcite /opt/xcite
ENV PATH=/opt/xcite/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /bundle
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=15s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=14)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["xcite", "serve", "/bundle", "--host", "0.0.0.0"]
