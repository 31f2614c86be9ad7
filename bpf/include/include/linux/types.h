/* SPDX-License-Identifier: GPL-2.0-only */
/* The integer types that BPF programs use; sizes are those of every 64-bit Linux. */
#pragma once
typedef unsigned char __u8, u8;
typedef signed char __s8, s8;
typedef unsigned short __u16, u16, __be16, __le16, __sum16;
typedef short __s16, s16;
typedef unsigned int __u32, u32, __be32, __le32, __wsum;
typedef int __s32, s32, pid_t;
typedef unsigned long long __u64, u64, __be64, __le64;
typedef long long __s64, s64;
typedef u8 uint8_t;
typedef u16 uint16_t;
typedef u32 uint32_t;
typedef u64 uint64_t;
typedef s8 int8_t;
typedef s16 int16_t;
typedef s32 int32_t;
typedef s64 int64_t;
typedef unsigned long size_t, uintptr_t;
typedef _Bool bool;
#define true 1
#define false 0
#define NULL ((void *)0)
#define __user
#define __aligned_u64 __u64 __attribute__((aligned(8)))
#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif
