/** The image that demo, benchmarks and tests share. */
import { findImage, type Image } from '../src/image/store.js';
import { IMAGES_DIR } from './checkout.js';

export function readImage(): Promise<Image> {
  return findImage(IMAGES_DIR, 'default');
}
