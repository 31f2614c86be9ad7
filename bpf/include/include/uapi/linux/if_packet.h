/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc brings its own copy; this name must exist. */
#pragma once
