"""Operations with a kernel of their own: a file each, with its plain form, its kernel, and one door to both."""
