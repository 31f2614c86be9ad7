/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * kmemwatch never tests a version: distributions backport. bcc itself wants the two names, and takes the value that
 * old kernels compare with their own from BCC_LINUX_VERSION_CODE.
 */
#pragma once
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
