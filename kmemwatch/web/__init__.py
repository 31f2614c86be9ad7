# SPDX-License-Identifier: GPL-2.0-only
"""Serving HTTP: listening, TLS, access, and giving up privileges. Knows nothing of what is served.

config         a web configuration as data; whether a new one protects less
configformat   the text of --web.config.file -> configuration
configfiles    reading the files of a configuration, and noticing changes
tls            configuration -> TLS context
access         which requests are answered: host names, rate limit, passwords
clientlog      log lines that clients cause, limited
listening      listening sockets
server         the server itself, with deadlines and a limit of connections
privileges     capabilities, user, and system calls of a process
"""
