# RabbitMQ that speaks TLS only, with a certificate authority made when the container first starts.
FROM debian:12-slim

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The versions are Debian stable's.
# hadolint ignore=DL3008
RUN printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d \
    && chmod 755 /usr/sbin/policy-rc.d \
    && apt-get update \
    && apt-get install -y --no-install-recommends openssl rabbitmq-server \
    && rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d

COPY docker/rabbitmq.conf /etc/rabbitmq/rabbitmq.conf
COPY docker/rabbitmq-start.sh /usr/local/bin/rabbitmq-start.sh

VOLUME ["/certificates", "/var/lib/rabbitmq"]
EXPOSE 5671
HEALTHCHECK --interval=5s --timeout=10s --start-period=30s CMD ["rabbitmq-diagnostics", "-q", "check_port_listener", "5671"]
CMD ["/usr/local/bin/rabbitmq-start.sh"]
