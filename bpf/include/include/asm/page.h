/* SPDX-License-Identifier: GPL-2.0-only */
/* bcc sizes ring buffers in pages of this size; kmemwatch passes the running kernel's. */
#pragma once
#ifdef KMW_PAGE_BYTES
#define PAGE_SIZE KMW_PAGE_BYTES
#else
#define PAGE_SIZE 4096
#endif
