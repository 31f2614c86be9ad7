/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc includes this before anything else; it asks for no option but this one. */
#pragma once
#define CONFIG_BPF_SYSCALL 1
