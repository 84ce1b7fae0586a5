import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { readElfNeeds } from './elf.js';

const folder = mkdtempSync(join(tmpdir(), 'shadowvm-elf-'));
afterAll(() => rmSync(folder, { recursive: true }));

function compile(name: string, ...args: string[]): Buffer {
  const input = 'double half(double x) { return x / 2; } int main(int c, char **v) { return (int)half(c) + (v == 0); }';
  execFileSync('gcc', ['-x', 'c', '-', '-o', join(folder, name), ...args], { input });
  return readFileSync(join(folder, name));
}

describe('what an ELF file needs', () => {
  test('a program: its loader and its libraries', () => {
    expect(readElfNeeds(compile('program', '-Wl,--no-as-needed', '-lm'))).toEqual({
      interpreter: '/lib64/ld-linux-x86-64.so.2',
      needed: ['libm.so.6', 'libc.so.6'],
    });
  });

  test('a library: no loader', () => {
    const needs = readElfNeeds(compile('library.so', '-shared', '-fPIC', '-Wl,--no-as-needed'));
    expect(needs).toEqual({ interpreter: null, needed: ['libc.so.6'] });
  });

  test('a static program: nothing', () => {
    expect(readElfNeeds(compile('static', '-static'))).toEqual({ interpreter: null, needed: [] });
  });

  test('what is no ELF file needs nothing', () => {
    expect(readElfNeeds(Buffer.from('#!/bin/sh\n'))).toBeNull();
    expect(readElfNeeds(Buffer.alloc(0))).toBeNull();
    expect(readElfNeeds(Buffer.alloc(100))).toBeNull();
  });

  test('a file that is cut short is an error, wherever it is cut', () => {
    const whole = compile('whole');
    for (const bytes of [64, 100, 700, 1000]) expect(() => readElfNeeds(whole.subarray(0, bytes))).toThrow(RangeError);
  });
});
