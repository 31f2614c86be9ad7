/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc brings its own copy of the BPF user API; this name must exist. */
#pragma once
