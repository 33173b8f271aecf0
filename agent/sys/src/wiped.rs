//! Values whose memory is overwritten when they are dropped, whatever they are made of.
#![allow(unsafe_code)]

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::Deref;

use zeroize::Zeroize;

/// A value on the heap, so that moving this leaves no copy of it, which is overwritten when dropped. For types of other
/// crates that hold a key and do not overwrite it themselves.
///
/// What makes the value may leave parts of it on the stack.
pub struct Wiped<T>(Box<MaybeUninit<T>>);

impl<T> Wiped<T> {
    /// A value that does something when dropped would find itself overwritten.
    const IS_PLAIN: () = assert!(!std::mem::needs_drop::<T>());

    /// Takes a value that owns nothing but its own bytes.
    pub fn new(value: T) -> Wiped<T> {
        let () = Self::IS_PLAIN;
        Wiped(Box::new(MaybeUninit::new(value)))
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` has put a value there, and nothing but `drop` overwrites it.
        unsafe { self.0.assume_init_ref() }
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        self.0.as_mut().zeroize();
    }
}

impl<T> fmt::Debug for Wiped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wiped(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_there_and_overwritten() {
        let mut wiped = Wiped::new([7_u8; 100]);
        assert_eq!(*wiped, [7; 100]);
        assert_eq!(format!("{wiped:?}"), "Wiped(..)");
        // What `drop` does, with the memory still there to be looked at: zeroes are a value of this type.
        wiped.0.as_mut().zeroize();
        assert_eq!(*wiped, [0; 100]);
    }
}
